"""Files folded from a command line or a script: paths or URLs come in, folded files and their reports go out.

One job (fold, write, verify, put in place, report) serves a single file and many; many go through any executor. It
knows no format: that is for `bnfold.fold` and `bnfold.verify`.
"""
