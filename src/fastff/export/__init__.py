"""Trained models outside of Python: compiled packages for C++ (AOTInductor), and ONNX files."""

from fastff.export.check import MismatchError
from fastff.export.files import FORMATS, export
from fastff.export.subject import Subject, load_subject

__all__ = ["FORMATS", "MismatchError", "Subject", "export", "load_subject"]
