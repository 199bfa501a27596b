"""Pictures and videos that runs made: read from files, compared with those of the full run, judged, and drawn as one picture.

Independent of models, blocks and residuals; knows arrays and files alone. Libraries measure: torchmetrics, and where they are
installed ImageReward and VBench; imageio reads. All of them are imported late.
"""
