"""The merged model as a file that other runtimes load."""

from updp.exports.base import Format
from updp.exports.formats import FORMATS, parse_formats
from updp.exports.record import Exported, read_exports
from updp.exports.run import export

__all__ = ["FORMATS", "Exported", "Format", "export", "parse_formats", "read_exports"]
