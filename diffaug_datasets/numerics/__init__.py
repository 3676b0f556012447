"""The mathematics of diffusion sampling, row by row: torch and the standard library only.

Every function is pure: no file, no log, no model, no generator. A row's result never depends on the rows beside it, so
one batch may mix start steps, prompt switches and guidance scales. Arithmetic is float32 for half and single precision
tensors and float64 for double ones (`precision`); coefficients are Python floats, that is float64.
"""
