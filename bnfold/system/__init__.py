"""What the machine gives: files as they are read and written, locks, and memory; paths come in, files go out.

It knows no format, and nothing of models.
"""
