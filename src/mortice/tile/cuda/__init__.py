"""CUDA for sm_90a: text of the thread level, compiled in this process by NVRTC, launched through the driver.

It must not know frontends. No header of CUDA's is needed and nothing is linked: both libraries are opened when used.
"""
