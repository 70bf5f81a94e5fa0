"""The build of toedit: an in-tree PEP 517 backend around setuptools. Not part of the wheel."""
