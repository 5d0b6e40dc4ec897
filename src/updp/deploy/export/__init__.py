"""Export of the merged model to files that other runtimes load."""

from updp.deploy.export.base import Format
from updp.deploy.export.exporter import export
from updp.deploy.export.formats import FORMATS, parse_formats
from updp.deploy.export.manifest import Exported, read_exports

__all__ = ["FORMATS", "Exported", "Format", "export", "parse_formats", "read_exports"]
