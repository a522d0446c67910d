"""One page per model that shows what its experts learned: one HTML file, offline, beside the same numbers as JSON.

`gathering` reads a diagnosis, a certificate and a run from disk; `fitting` chooses what of them fits into a page, in
`packing`'s compact numbers; `page` writes HTML around the scripts in `assets` and the libraries in `vendor`; `writing`
puts page and JSON on disk; `pictures` draws the same figures for papers; `card` shows one of them in the model card;
`watching` follows a run.
"""

from moesaic.report.card import has_card, show_in_card
from moesaic.report.gathering import certificate_of, diagnosis_of, run_of
from moesaic.report.page import page
from moesaic.report.pictures import pictures
from moesaic.report.watching import watch
from moesaic.report.writing import write

__all__ = ["certificate_of", "diagnosis_of", "has_card", "page", "pictures", "run_of", "show_in_card", "watch", "write"]
