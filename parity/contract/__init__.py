"""What the port and the reference agree on, readable by either without importing the other's framework.

Imports NumPy, safetensors and Pillow only: `torch_impl` (PyTorch) and `keras_ref` (TensorFlow) both import this
package, and nothing else of each other's.
"""
