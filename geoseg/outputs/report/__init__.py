"""The morning page of a run, and the blocks for other pages.

`write_report` makes the page of a run. A page of one's own is made of `Section` with what
`figures`, `notice`, `facts`, `table`, `paragraph` and `map_html` return, and written by
`write_page`, which brings style, script and the rules that keep it safe.
"""

from geoseg.outputs.report.encode import OutlineEncoder
from geoseg.outputs.report.frame import Frame, all_bounds
from geoseg.outputs.report.map import MapData, Problem, map_html
from geoseg.outputs.report.page import (
    Column,
    Html,
    Section,
    details,
    escape,
    facts,
    figures,
    headline,
    join,
    notice,
    paragraph,
    table,
    write_page,
)
from geoseg.outputs.report.pictures import make_pyramids
from geoseg.outputs.report.report import write_report
from geoseg.outputs.report.run import RunFacts

__all__ = [
    "Column",
    "Frame",
    "Html",
    "MapData",
    "OutlineEncoder",
    "Problem",
    "RunFacts",
    "Section",
    "all_bounds",
    "details",
    "escape",
    "facts",
    "figures",
    "headline",
    "join",
    "make_pyramids",
    "map_html",
    "notice",
    "paragraph",
    "table",
    "write_page",
    "write_report",
]
