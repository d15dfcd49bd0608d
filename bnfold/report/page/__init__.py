"""A report as something to show: a `Report` comes in, one HTML page or Markdown file that stands for itself goes out.

It computes nothing about models, and imports its template library only when a page is asked for.
"""

from bnfold.report.page.writing import require_page, write_page

__all__ = ["require_page", "write_page"]
