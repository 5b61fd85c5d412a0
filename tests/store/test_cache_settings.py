"""Settings of the cache that cannot be used say which one, its value, and what to give."""

from __future__ import annotations

import pytest

from flmm_detseg.errors import ConfigError
from flmm_detseg.store.settings import ApproximateSettings, CacheSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(host_bytes=-1), "`host_bytes` is -1: give 0 or more"),
        (dict(session_depth=0), "`session_depth` is 0: give 1 or more"),
        (dict(tenant_bytes=-5), "`tenant_bytes` is -5: give more than 0, or None"),
        (dict(tenant_inserts_per_s=0), "`tenant_inserts_per_s` is 0"),
        (dict(lease_s=0), "`lease_s` is 0: give a time in seconds"),
        (dict(flight_timeout_s=-1), "`flight_timeout_s` is -1"),
        (dict(ghost_images=0), "`ghost_images` is 0"),
        (dict(redis_ttl_s=0), "`redis_ttl_s` is 0"),
        (dict(poll_s=-1), "`poll_s` is -1"),
        (dict(max_object_share=1.5), "`max_object_share` is 1.5: give a share, 0 to 1"),
        (dict(admission="never"), "`admission` is 'never': give 'second_sighting' or 'always'"),
        (dict(levels=("L3",)), "`levels` is \\('L3',\\): give \\('L1', 'L2'\\)"),
        (dict(levels=()), "`levels` is"),
        (dict(levels=("L2",), folder="cache"), "nothing is stored in folder: add 'L1'"),
        (dict(levels=("L2",), redis_url="redis://a", secret="s" * 16), "nothing is stored in redis_url"),
        (dict(device_bytes=1000), "`device_bytes` is 1000, but `device` is not given: give the model's device"),
        (dict(secret="short"), "5 characters, wanted at least 16"),
    ],
)  # fmt: skip
def test_settings_say_what_is_wrong_with_them(settings, message):
    with pytest.raises(ConfigError, match=message):
        CacheSettings(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        dict(tau=-1),
        dict(share=5),
        dict(shadow_rate=-1),
        dict(max_disagreement=2),
        dict(confidence=1),
        dict(edge_step=-1),
    ],
)
def test_settings_of_the_approximate_level_say_what_is_wrong_with_them(settings):
    ((key, value),) = settings.items()
    with pytest.raises(ConfigError, match=f"ApproximateSettings: `{key}` is {value}: give"):
        ApproximateSettings(**settings)
