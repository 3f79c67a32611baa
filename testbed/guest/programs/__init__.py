"""The guest programs that ship with the testbed: echo, ramp, kv, kv-durable and http."""
