"""``aggregator.toml``: how the centre of a consortium runs."""

from typing import Annotated, Literal

from pydantic import Field

from wardround_common.spec.base import Count, Table

Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.\-]{0,252}$")]
BindAddress = Annotated[str, Field(pattern=r"^[0-9A-Za-z.\-\[\]:]{1,64}$")]
Port = Annotated[int, Field(ge=1, le=65_535)]
HostPort = Annotated[str, Field(pattern=r"^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$")]


class FrontDoor(Table):
    """What sites and operators reach from outside."""

    kind: Literal["none", "nginx"] = Field(
        default="none",
        description='"none": the SuperLink answers on loopback only, for sites on this machine; '
        '"nginx": nginx lets sites reach what they need and nothing else. The program nginx must be '
        "installed.",
    )
    listen: BindAddress = Field(default="0.0.0.0", description="Address that nginx listens on.")  # noqa: S104  the front door is for everybody
    port: Port = Field(default=443, description="Port that nginx listens on.")
    site_certificates: Literal["require", "accept"] = Field(
        default="require",
        description='"require": a site is let in with the client certificate of its kit only; '
        '"accept": also without, for stock flower-supernode, which has none. Flower\'s own node '
        "key is needed either way.",
    )
    body_mib: Annotated[int, Field(ge=8, le=1024)] = Field(
        default=16,
        description="Largest request, in MiB. Flower sends updates in parts of 5 MiB.",
    )
    requests_per_s: Annotated[int, Field(ge=10, le=100_000)] = Field(
        default=200, description="Requests a second that a site may send for long."
    )
    connections: Annotated[int, Field(ge=4, le=10_000)] = Field(
        default=32, description="Connections that a site, or an address, may have at a time."
    )


class Stream(Table):
    """The tensor stream, the faster way for models and updates."""

    listen: BindAddress = Field(
        default="0.0.0.0",  # noqa: S104  sites reach it directly
        description="Address that it listens on.",
    )
    port: Port = Field(
        default=9443,
        description="First port; a second run at the same time takes the next one, and so on.",
    )


class AggregatorSpec(Table):
    """The whole file."""

    name: str = Field(
        min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\"\\]+$", description="The consortium."
    )
    host: Host = Field(
        description="Name or address under which sites reach this machine; it is in the server's "
        "certificate."
    )
    superlink_port: Port = Field(
        default=8000, description="Port of Flower's SuperLink, on loopback."
    )
    enrolment_port: Port = Field(
        default=8001,
        description="Port on loopback where sites enrol; the front door passes it on.",
    )
    audit_years: Annotated[int, Field(ge=1, le=100)] = Field(
        default=6,
        description="Years for which entries of the audit log are kept; older ones are let go when "
        "something is added.",
    )
    runs_at_once: Count = Field(
        default=2, description="Runs that go on at the same time; others wait for their turn."
    )
    metrics: HostPort | None = Field(
        default=None, description="Address of the Prometheus endpoint, host:port. Absent: none."
    )
    front_door: FrontDoor = Field(
        default_factory=FrontDoor, description="What sites and operators reach from outside."
    )
    stream: Stream | None = Field(
        default=None,
        description="The tensor stream. Absent: models and updates travel as Flower messages.",
    )
