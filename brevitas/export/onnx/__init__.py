"""Module paths of earlier versions."""
