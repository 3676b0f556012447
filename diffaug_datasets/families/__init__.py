"""Model families: one module each, found like methods (`core.family`), and `parts`, which they are made of.

A module says which pipelines it drives (`CLASSES`), what they need (`PARTS`, `LORA_TARGETS`, `TOKENS`, `DEFAULTS`), and
brings `check`, which looks at a folder without torch and says what can be planned on it, and `load`, whose
`parts.driven.DrivenModel` encodes, decodes, conditions and predicts. Everything else (batches, guidance of mixed
scales, counting, samplers) is the engine's and the same for all families.
"""
