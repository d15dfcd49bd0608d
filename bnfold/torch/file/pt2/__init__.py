"""A .pt2 archive, looked through before torch loads it: bytes come in, a refusal or nothing goes out.

It must not import what an archive names, nor evaluate what it says.
"""
