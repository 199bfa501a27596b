"""The device a model runs on: its memory, its queues and its clock, whichever accelerator torch drives.

The lowest folder of the torch adapter; every other may import it.
"""
