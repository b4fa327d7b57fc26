"""Exporters: from weights as they are published to a module folder, without PyTorch.

Each family of models is one file over the building blocks:

- ``package``: the way from a source to a finished folder; the table of families is there.
- ``source``: a path or a Hugging Face id → files on this machine, and their licence.
- ``storage``: parameters as float16, and what that changes.
- ``weights``: a safetensors file as float32 arrays, with the shapes checked.
- ``family``: what the file of a family offers.
- ``bert``, ``roberta``, ``distilbert``, ``modernbert``, ``gpt2``, ``llama``, ``multi_head``: the
  families.
- ``text_graph``: what the graphs of all text models have in common, and their manifest.
- ``encoder``: the graph that encoders of BERT's kind have in common.
- ``rotary``: rotary positions.
- ``configs``: what is checked of a configuration and a tokenizer.
- ``attention``: heads, attention with its weights, and the biases that masks become.
- ``blocks``: a graph under construction, and the layers that families share.
"""

from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.exporters.package import export

__all__ = ["ExportError", "export"]
