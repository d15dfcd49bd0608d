"""Words for people: names of strangers, tables and progress come in, text for a terminal or a notebook goes out.

It prints nothing, and knows nothing of models.
"""
