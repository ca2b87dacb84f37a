"""The call protocol of the mesh without any I/O: ``wire`` is what the bytes mean, ``calls`` what may follow what."""
