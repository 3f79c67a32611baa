"""A run as one page: ``report.html``, which needs nothing but a browser.

A *run folder* (:mod:`.folder`) is what a run left: result, events, samples, logs; any of them may be missing
or cut short, and what is missing is told. From its events comes the *story* (:mod:`.story`): each migration
with its phases, marks, rounds and maps of pages. From its samples come the *dots* (:mod:`.dots`): one a
request, or, where there are too many, a summary that drops no extreme and says that it is one. *Words*
(:mod:`.words`) are the sentences, *charts* (:mod:`.charts`) the pictures that need no script. A *view*
(:mod:`.view`) is all of this for one run, and :mod:`.render` lays views out: one, or several side by side.

All that moves (timeline and replay) is drawn in the browser by the scripts in ``parts/`` from the view's
data, which stand in the page as JSON. Nothing is drawn that was not recorded; where something in between is
drawn evenly, the page says so.
"""
