"""Names to import."""


class GaussianBlur:
    """A name to import."""
