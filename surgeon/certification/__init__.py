"""Op rules held against the ops they speak of: small graphs grown every way and run side by side."""

from surgeon.certification.certify import Finding, certify

__all__ = ["Finding", "certify"]
