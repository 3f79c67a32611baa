"""What one does with a lab, and what comes out of it: a run and its result, comparisons of runs, the sweep of
faults, benches.
"""
