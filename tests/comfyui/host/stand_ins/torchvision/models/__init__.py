"""No vision models."""
