"""What full runs of a model teach: inner products of its residuals, and what follows from them.

From the Gram matrix of the residuals of a run (``_gram``) follow the error of reusing any of them at any later step, the
best coefficient of a forecast and its error; no residual is held. ``_moments`` is what is known of one stream,
``Calibration`` all streams together. Pure functions stand below the class: ``_from_residuals`` measures arrays,
``_resample`` reads a calibration at other noise levels, ``_merge`` puts samples or branches of guidance together (``_likeness``
is what it assumes between these), ``_format`` is the file.
``_prior`` is the calibration expected of a model that nobody measured, ``_file`` reads and checks one in a file, and
``_forecast`` turns measured errors into the coefficients of a run.

Above ``policy/`` (a calibration has a curve) and ``schedule/`` (a forecast is coefficients); presets, plans and runs import
it.
"""
