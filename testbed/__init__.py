"""Live migration under the eyes of its clients."""
