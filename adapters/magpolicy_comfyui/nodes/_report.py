"""Telling what a sampling did: in the log, and in the browser at the node that asked for it."""

from __future__ import annotations

from magpolicy_comfyui._prompt_server import prompt_server
from magpolicy_comfyui._run_report import RunReport
from magpolicy_comfyui._runs import Attachment, log

EVENT = "magpolicy.report"


def finished(attachment: Attachment, run_report: RunReport) -> None:
    """Log the report, and send it to the browser."""
    log.info("magpolicy: %s", run_report.text)
    node = attachment.settings.node
    server = prompt_server()
    if server is None or node is None:
        return
    try:
        server.send_sync(EVENT, {"node": node, **run_report.to_dict()})
    except Exception as error:  # a picture is not lost for a message
        log.warning("magpolicy: the report could not be sent to the browser: %s", error)
