"""The device beside the CPU, whichever torch drives: its streams, its events, and copies between its memory and main memory.

Work on an accelerator is queued, and to look at a result the host has to wait. What is here never waits: times are taken by
events that are read later, and copies run beside the device's own work. Imports nothing of the other folders.
"""
