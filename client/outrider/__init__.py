"""Outrider: speculative decoding across machines. This is the client.

from outrider import Client, SamplingParams

with Client("localhost:50051") as client:
    for token in client.generate("Once upon a time", sampling=SamplingParams(max_tokens=32)):
        print(token.text, end="", flush=True)
"""

from importlib.metadata import version

from outrider import errors
from outrider.client import AsyncClient, Client
from outrider.generation import AsyncGeneration, Generation
from outrider.resume import Resuming
from outrider.tls import Tls
from outrider.types import (
    Answer,
    Message,
    ModelInfo,
    SamplingParams,
    ServerInfo,
    Speculation,
    Started,
    Token,
)

__version__ = version("outrider")

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncGeneration",
    "Client",
    "Generation",
    "Message",
    "ModelInfo",
    "Resuming",
    "SamplingParams",
    "ServerInfo",
    "Speculation",
    "Started",
    "Tls",
    "Token",
    "__version__",
    "errors",
]
