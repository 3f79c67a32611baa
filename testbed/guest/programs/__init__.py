"""The guest programs that ship with the testbed: echo, ramp, kv and http."""
