"""What the panel in the browser asks ComfyUI's server: a preview of the schedule that a node's settings give."""
