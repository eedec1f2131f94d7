"""What all configuration models share: frozen, and unknown keys are refused."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Frozen pydantic model that refuses unknown keys. Importable without ray, torch, vllm or java."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())
