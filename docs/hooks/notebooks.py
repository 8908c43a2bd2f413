"""Pages of the site for the notebooks, with what they put out; the notebooks themselves lie beside them."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

_TAKE = '<p><a href="{0}" download>Download the notebook</a> to run it in Jupyter.</p>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for notebook in sorted(Path(config.docs_dir, "notebooks").glob("*.ipynb")):
        name = notebook.stem
        names = {"unique_key": name, "output_files_dir": f"{name}_files"}
        text, made = MarkdownExporter().from_filename(str(notebook), resources=names)
        title, _, rest = text.lstrip().partition("\n")
        body = rest.replace("![png](", "![What the cell above shows](")
        page = f"{title}\n\n{_TAKE.format(notebook.name)}\n{body}"
        files.append(File.generated(config, f"notebooks/{name}.md", content=page))
        for place, picture in made["outputs"].items():
            files.append(File.generated(config, f"notebooks/{place}", content=picture))
    return files
