"""Ho et al. 2020 as a library of its own: networks, reverse process, objectives, samplers.

Nothing here knows of coding.  The codec's own network takes part through
:class:`diffcodec.ddpm.process.CodecEps`.
"""
