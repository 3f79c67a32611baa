"""Live migration under the eyes of its clients."""

import os

# numpy's linear algebra starts a thread for each processor when it is loaded. Nothing here multiplies
# matrices, a fork of a process with threads is not safe, and the threads of ten processes are in each other's
# way.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
