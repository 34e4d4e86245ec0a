"""The invitation to a tensor stream: one Flower message a site and run."""

from typing import Annotated, Final, Literal

from pydantic import Field

from wardround_common.wire.step import RunId, SiteName, WireModel

SESSION_TYPE: Final = "query.session"
MAX_INVITE_BYTES: Final = 4096


class SessionInvite(WireModel):
    """Where a site's node finds the stream of a run.

    Attributes:
        run: the run.
        site: whom this invitation is for.
        address: ``host:port`` of the aggregator's tensor stream.
        token: names the session; of use only together with the site's certificate.
    """

    protocol: Literal[1] = 1
    run: RunId
    site: SiteName
    address: Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-\[\]:]{1,255}:\d{1,5}$")]
    token: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
