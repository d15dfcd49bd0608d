"""What commands share: options come in, models, jobs and lines to print go out.

It knows no command, prints nothing of itself, and ends no process.
"""
