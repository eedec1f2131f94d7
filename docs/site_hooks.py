"""Hooks of mkdocs: mermaid comes from a pinned package, and only pages with a picture load it."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.utils import get_relative_url

SCRIPT = "assets/mermaid.min.js"
#: Of mermaid 11.6.0 as the package has it: the published file without the blanks at the ends of its lines.
SHA256 = "c2a496e5230276f435b4aee61fcccc75170b2aac9a0fecab100605473c8e5c8f"


def on_files(files: Files, config: Any) -> Files:
    """Add the script to the site. PluginError where it is not the one that we know."""
    package = find_spec("diagram_renderer")
    if package is None or package.origin is None:
        raise PluginError("the package diagram-renderer, which holds mermaid, is not installed: run `make site`")
    script = Path(package.origin).parent / "renderers/static/js/mermaid.min.js"
    content = script.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise PluginError(f"{script} is not the mermaid that we know. Look at it, then change SHA256 in {__file__}")
    files.append(File.generated(config, SCRIPT, content=content))
    return files


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Load it before the theme does: the theme takes a mermaid that is there, or fetches one from elsewhere."""
    if '<pre class="mermaid">' not in output:
        return output
    address = get_relative_url(SCRIPT, page.url)
    return output.replace("</head>", f'<script src="{address}"></script></head>', 1)
