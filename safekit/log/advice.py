"""What to do about the faults that a module log tells: a next step for each message that is not mere news.

The texts of messages are facts of the guide and stay as they are; `safekit log` shows the next step of the last fault,
and its JSON that of each. `{module}` is the module. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from safekit.log.messages import Language

_WAIT_OTHER = (
    "start the other server; only if it is lost for good: safekit stop -m {module}, then safekit prim -m {module} here",
    "démarrer l'autre serveur ; seulement s'il est perdu : safekit stop -m {module}, puis safekit prim -m {module} ici",
)
_SCRIPT = (
    "safekit log --scripts -m {module} shows what it wrote; correct it, then safekit restart -m {module}",
    "safekit log --scripts -m {module} montre sa sortie ; le corriger, puis safekit restart -m {module}",
)
_WHY = ("safekit why -m {module} tells what led to it", "safekit why -m {module} en donne la cause")
_CAUSE_START = (
    "remove the cause, then safekit start -m {module}",
    "supprimer la cause, puis safekit start -m {module}",
)
_RETRIED = (
    "remove the cause: it is tried again by itself; safekit state -m {module} says when it has worked",
    "supprimer la cause : un nouvel essai est fait automatiquement ; safekit state -m {module} dit quand il a réussi",
)
_DECIDE = (
    "safekit stop -m {module}, then safekit prim -m {module}, on the server whose data counts; "
    "safekit second -m {module} on the other one",
    "safekit stop -m {module}, puis safekit prim -m {module}, sur le serveur dont les données comptent ; "
    "safekit second -m {module} sur l'autre",
)
_NETWORK = (
    "look at the network between the servers: safekit cluster state, ip address",
    "vérifier le réseau entre les serveurs : safekit cluster state, ip address",
)
_LOG = (
    "look at SAFEVAR/modules/{module}/log, and send safekit snapshot -m {module} FILE.zip to whoever supports you",
    "regarder SAFEVAR/modules/{module}/log, et envoyer safekit snapshot -m {module} FICHIER.zip au support",
)
_ADDRESS = (
    "ip address and ip neigh show who has it; take it away there",
    "ip address et ip neigh montrent qui la possède ; la retirer là-bas",
)
_FARM = (
    "safekit farm -m {module} shows who takes part; start the module there, or repair the server and its networks",
    "safekit farm -m {module} montre qui participe ; y démarrer le module, ou réparer le serveur et ses réseaux",
)
_SAME = (
    "safekit diff -m {module} shows how; on the server with the right one: safekit -H SERVERS -E {module}",
    "safekit diff -m {module} montre en quoi ; sur le serveur qui a la bonne : safekit -H SERVEURS -E {module}",
)
_CLUSTER = (
    'correct cluster.xml, then safekit cluster config FILE.xml and safekit -H "*" -G',
    'corriger cluster.xml, puis safekit cluster config FICHIER.xml et safekit -H "*" -G',
)

NEXT_STEPS: Mapping[str, tuple[str, str]] = {
    "stopping_loop": (
        "safekit why -m {module} and safekit log --scripts -m {module} tell the cause; remove it, then "
        "safekit start -m {module}",
        "safekit why -m {module} et safekit log --scripts -m {module} donnent la cause ; la supprimer, puis "
        "safekit start -m {module}",
    ),
    **dict.fromkeys(
        ("stood_still", "unwatched", "left_behind", "served_elsewhere", "copied_memory", "not_uptodate", "unapplied"),
        _WAIT_OTHER,
    ),
    **dict.fromkeys(("set_back_here", "set_back_there", "copies"), _DECIDE),
    "previous_halt": (
        "journalctl -b -1 tells why the server went down; nothing else is to be done",
        "journalctl -b -1 dit pourquoi le serveur s'est arrêté ; rien d'autre à faire",
    ),
    "failover_off": (
        "safekit failover on -m {module}, on both servers",
        "safekit failover on -m {module}, sur les deux serveurs",
    ),
    "failover_no_heartbeat": (
        "repair the other server or its networks, then safekit start -m {module} there",
        "réparer l'autre serveur ou ses réseaux, puis y faire safekit start -m {module}",
    ),
    "splitbrain_staying": (
        "repair the network that was cut: safekit cluster state shows it",
        "réparer le réseau qui était coupé : safekit cluster state le montre",
    ),
    "splitbrain_exiting": (
        "safekit quarantine list -m {module} shows what is given up; repair the network that was cut",
        "safekit quarantine list -m {module} montre ce qui est abandonné ; réparer le réseau qui était coupé",
    ),
    "prim_aborted": (
        "safekit state -m {module} on both servers: the other one is primary, or the data here is inconsistent",
        "safekit state -m {module} sur les deux serveurs : l'autre est primaire, ou les données ici sont incohérentes",
    ),
    "second_aborted": (
        "start the other server first: safekit prim -m {module}, or safekit start -m {module}, there",
        "démarrer d'abord l'autre serveur : safekit prim -m {module}, ou safekit start -m {module}, là-bas",
    ),
    **dict.fromkeys(("script_error", "script_unfound", "script_failed", "script_timeout"), _SCRIPT),
    "inconsistent": (
        "start the other server, then safekit start -m {module} here: the data is synchronised again",
        "démarrer l'autre serveur, puis safekit start -m {module} ici : les données sont resynchronisées",
    ),
    "reintegration_failed": _RETRIED,
    "reintegration_lost_file": (
        "safekit quarantine list -m {module} shows what was kept of them",
        "safekit quarantine list -m {module} montre ce qui en a été gardé",
    ),
    "quarantine_failed": (
        "free space there: safekit quarantine clean -m {module}",
        "y libérer de la place : safekit quarantine clean -m {module}",
    ),
    "rfs_state_fault": _RETRIED,
    "rfs_unusable": _CAUSE_START,
    "rfs_recovery": _WHY,
    **dict.fromkeys(
        ("nfscheck_timeout", "nfscheck_error"),
        ("look at the disk below: dmesg, iostat -x", "regarder le disque au-dessous : dmesg, iostat -x"),
    ),
    **dict.fromkeys(("vip_duplicate", "vip_conflict", "vip_taken_over"), _ADDRESS),
    **dict.fromkeys(("vip_not_set", "vip_no_reset", "vip_failed"), _RETRIED),
    "internal": _LOG,
    "errd_event": (
        "safekit userlog -m {module} shows what the application wrote before it died",
        "safekit userlog -m {module} montre ce que l'application a écrit avant de mourir",
    ),
    **dict.fromkeys(("farm_silent", "farm_lan", "farm_filter_failed"), _FARM),
    "farm_frozen": (
        "look at the load of this server, and at its hypervisor",
        "vérifier la charge de ce serveur, et son hyperviseur",
    ),
    "farm_filter": (
        "have that program leave the tables of SafeKit alone: nft list ruleset",
        "ce programme doit laisser les tables de SafeKit : nft list ruleset",
    ),
    "process_died": _LOG,
    "heart_silent": _LOG,
    "process_not_started": _CAUSE_START,
    "peer_rejected": (
        'give both servers the same key and time: safekit cluster confinfo, safekit -H "*" -G',
        'donner aux deux serveurs la même clé et la même heure : safekit cluster confinfo, safekit -H "*" -G',
    ),
    **dict.fromkeys(("action_put_off", "swap_abandoned", "supervisor_died", "parts_lost"), _WHY),
    **dict.fromkeys(("config_differs", "config_conflict"), _SAME),
    **dict.fromkeys(("cluster_unusable", "heartbeat_held", "heartbeat_unused"), _CLUSTER),
    "rebooting": _WHY,
    "errd_unreachable": (
        "safekit errd list -m {module} shows what is watched; safekit stopstart -m {module} starts errd again",
        "safekit errd list -m {module} montre ce qui est surveillé ; safekit stopstart -m {module} relance errd",
    ),
}
"""By code, in English and in French."""

SAYS_ITSELF = frozenset(
    """
    advice_prim advice_primforce advice_served advice_data quarantined custom_missing farm_gave_way farm_not_flooded
    farm_learned rfs_recovery_over errd_silent certificate
    """.split()  # noqa: SIM905 - a table to read
)
"""Messages that are a next step, or end with one."""

NEWS = frozenset(
    """
    action_called action_boot action_auto action_rule transition_rule transition_from begin_of_swap end_of_stop
    witness_wait failover_remote_stop local_state remote_state resource_set script updating_tree copied
    reintegration_ended reintegration_overwrites vip_set printe farm_membership farm_load farm_back farm_flooded
    cluster_taken heartbeat_moved
    """.split()  # noqa: SIM905 - a table to read
)
"""Messages after which nobody has to do anything, or whose rule, resource or state tells more (`safekit why`)."""


def next_step(code: str, module: str, language: Language = "en") -> str:
    """What to do about a message, "" for mere news and for one that says so itself. Never raises."""
    found = NEXT_STEPS.get(code)
    if found is None:
        return ""
    return found[language == "fr"].replace("{module}", module)
