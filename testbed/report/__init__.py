"""What a person sees: lines while a run goes on, and a summary at its end, both made from events and the
result alone."""
