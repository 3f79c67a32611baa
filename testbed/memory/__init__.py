"""Guest memory: a `Region` is the guest's RAM, a `PageSet` names some of its pages, `PageDigests` hold one
digest of each page, and a `DirtyTracker` tells which pages were written since it was last asked. A page is
4096 bytes everywhere, and a page number counts from the start of the region.
"""
