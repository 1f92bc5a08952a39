"""Every user-visible message of the module log, once: code, level, English, French.

English texts of the guide's index are facts and are kept to the letter; French texts are ours. A message is
a value with a stable code and fields; the log keeps both, so that any language can be shown afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["E", "I", "D"]
Language = Literal["en", "fr"]


@dataclass(frozen=True)
class Message:
    """A message: `level` E(vent), I(nformation) or D(ebug); texts with {field} places."""

    code: str
    level: Level
    en: str
    fr: str


_TABLE = (
    # Actions and transitions (guide 4, 5, 7, index)
    Message("action_called", "E", "Action {action} called by {who}", "Action {action} demandée par {who}"),
    Message("action_info", "I", "Action {action} called by {who}", "Action {action} demandée par {who}"),
    Message("action_boot", "E", "Action start called at boot time", "Action start demandée au démarrage du serveur"),
    Message("action_auto", "E", "Action start called automatically", "Action start demandée automatiquement"),
    Message(
        "action_rule",
        "E",
        "Action {action} from failover rule {rule}",
        "Action {action} de la règle de reprise {rule}",
    ),
    Message("transition_rule", "E", "Transition {name} from failover rule {rule}",
            "Transition {name} de la règle de reprise {rule}"),
    Message("transition_from", "E", "Transition {name} from {who}", "Transition {name} de {who}"),
    Message("transition_info", "I", "Transition {name} from {who}", "Transition {name} de {who}"),
    Message("begin_of_swap", "E", "Begin of Swap", "Début de la permutation"),
    Message("end_of_stop", "E", "End of stop", "Fin de l'arrêt"),
    Message("stopping_loop", "E", "Stopping loop", "Arrêt de la boucle"),
    Message("stood_still", "E",
            "Data may be not uptodate: this server stood still for {seconds} s, the other one may have gone on alone",
            "Données peut-être pas à jour : ce serveur était figé pendant {seconds} s, l'autre a pu continuer seul"),
    Message("unwatched", "E",
            "Data may be not uptodate: heart did not run for an unknown time, the other server may have gone on alone",
            "Données peut-être pas à jour : heart était arrêté pendant un temps inconnu, l'autre serveur a pu continuer"
            " seul"),
    Message("left_behind", "E",
            "Data may be not uptodate: the other server was not heard, went on alone and has stopped since",
            "Données peut-être pas à jour : l'autre serveur, devenu inaudible, a continué seul et s'est arrêté depuis"),
    Message("served_elsewhere", "E",
            "Data may be not uptodate: this server left the application when it did not hear the other one, which may"
            " have served since (wait until it is heard)",
            "Données peut-être pas à jour : ce serveur a laissé l'application sans entendre l'autre, qui a pu servir"
            " depuis (attente jusqu'à ce qu'il soit entendu)"),
    Message("advice_served", "E",
            "Start the other server; if it cannot come back, or has not served, run safekit stop, then safekit prim"
            " here",
            "Démarrez l'autre serveur ; s'il ne peut pas revenir ou n'a pas servi, lancez safekit stop puis safekit"
            " prim ici"),
    Message("set_back_here", "E",
            "The data of this server was set back to an older state (a snapshot?): {peer} has changes that it lacks",
            "Les données de ce serveur sont revenues à un état plus ancien (snapshot ?) : des modifications de {peer}"
            " lui manquent"),
    Message("set_back_there", "E",
            "The data of {peer} was set back to an older state (a snapshot?): it lacks changes of this server",
            "Les données de {peer} sont revenues à un état plus ancien (snapshot ?) : des modifications de ce serveur"
            " lui manquent"),
    Message("copies", "E",
            "One of this server and {peer} was set back, or is a copy of the other (snapshot, clone?):"
            " nobody can tell whose data counts",
            "Ce serveur ou {peer} est revenu en arrière, ou est une copie de l'autre (snapshot, clone ?) :"
            " nul ne sait quelles données comptent"),
    Message("advice_data", "E",
            "Nothing is overwritten before you decide: safekit stop, then safekit prim, on the server whose data"
            " counts; safekit second on the other one",
            "Rien n'est écrasé avant votre décision : safekit stop, puis safekit prim, sur le serveur dont les données"
            " comptent ; safekit second sur l'autre"),
    Message("copied_memory", "E",
            "This server is a copy of another machine, which may have served since (wait until the other server is"
            " heard)",
            "Ce serveur est la copie d'une autre machine, qui a pu servir depuis (attente jusqu'à ce que l'autre"
            " serveur soit entendu)"),
    Message("witness_wait", "E",
            "The witness lets this server go on: it waits {seconds} s until the other one has surely stopped",
            "Le témoin laisse continuer ce serveur : il attend {seconds} s que l'autre soit arrêté à coup sûr"),
    Message("previous_halt", "E", "Previous halt unexpected", "Arrêt précédent inattendu"),
    Message("failover_off", "E", "Failover-off configured", "Reprise automatique désactivée (failover off)"),
    Message("failover_remote_stop", "E", "Reason of failover: remote stop",
            "Raison de la reprise : arrêt du serveur distant"),
    Message("failover_no_heartbeat", "E", "Reason of failover: no heartbeat",
            "Raison de la reprise : plus de heartbeat"),
    Message("splitbrain_staying", "E", "Split brain recovery: staying alone",
            "Fin de double maître : ce serveur reste ALONE"),
    Message("splitbrain_exiting", "E", "Split brain recovery: exiting alone",
            "Fin de double maître : ce serveur quitte ALONE"),
    Message("prim_aborted", "E", "Requested prim start aborted ", "Démarrage prim demandé abandonné "),
    # States and resources
    Message("local_state", "E", "Local state {state} {color}", "État local {state} {color}"),
    Message("remote_state", "E", "Remote state {state} {color}", "État distant {state} {color}"),
    Message("resource_set", "E", "Resource {name} set to {value} by {who}",
            "Ressource {name} positionnée à {value} par {who}"),
    Message("resource_info", "I", "Resource {name} set to {value} by {who}",
            "Ressource {name} positionnée à {value} par {who}"),
    # User scripts
    Message("script", "E", "Script {name}", "Script {name}"),
    Message("script_error", "E",
            "Script {name} failed: exit status {status} after {seconds} s; safekit log --scripts shows what it wrote",
            "Script {name} en échec : statut {status} après {seconds} s ; safekit log --scripts montre sa sortie"),
    Message("script_unfound", "E",
            "Script {name} ended with exit status 0, but a command in it could not be run: {line}",
            "Le script {name} s'est terminé avec le statut 0, mais une commande n'a pas pu être exécutée : {line}"),
    Message("script_end", "I", "Script {name} ended: exit status {status} after {seconds} s",
            "Script {name} terminé : statut {status} après {seconds} s"),
    Message("script_failed", "E", "Script {name} could not be run: {reason}",
            "Le script {name} n'a pas pu être exécuté : {reason}"),
    Message("script_timeout", "E", "Script {name} killed: still running after {seconds} s",
            "Script {name} tué : toujours en cours après {seconds} s"),
    # File replication and reintegration
    Message("not_uptodate", "E",
            "Data may be not uptodate for replicated directories (wait for the start of the remote server)",
            "Les répertoires répliqués ne sont peut-être pas à jour (attente du démarrage du serveur distant)"),
    Message("inconsistent", "E",
            "Data may be inconsistent for replicated directories (stopped during reintegration)",
            "Les répertoires répliqués sont peut-être incohérents (arrêt pendant la réintégration)"),
    Message("unapplied", "E",
            "Data may lack changes that were acknowledged before nfsbox was killed (start the other server)",
            "Il manque peut-être des modifications acquittées avant que nfsbox soit tué (démarrer l'autre serveur)"),
    Message("advice_prim", "E",
            "If you are sure that this server has valid data, run safekit prim to force start as primary",
            "Si vous êtes sûr que ce serveur a des données valides, lancez safekit prim pour forcer le démarrage"
            " en primaire"),
    Message("advice_primforce", "E",
            "If you are sure that this server has valid data, run safekit primforce to force start as primary",
            "Si vous êtes sûr que ce serveur a des données valides, lancez safekit primforce pour forcer le"
            " démarrage en primaire"),
    Message("updating_tree", "E", "Updating directory tree from {dir}", "Mise à jour de l'arborescence depuis {dir}"),
    Message("copied", "E", "Copied {files} files, {size}, {seconds} s, {rate} KB/sec",
            "Copie de {files} fichiers, {size}, {seconds} s, {rate} Ko/s"),
    Message("reintegration_ended", "E", "Reintegration ended (synchronize)",
            "Réintégration terminée (synchronisation)"),
    Message("reintegration_verdict", "I", "Reintegration {kind}: {sentence} (rule {rule})",
            "Réintégration {kind} : {sentence} (règle {rule})"),
    Message("reintegration_overwrites", "E", "Reintegration {kind}: {sentence} (rule {rule})",
            "Réintégration {kind} : {sentence} (règle {rule})"),
    Message("reintegration_lost_file", "E", "Changes of this server are overwritten: {path}",
            "Des modifications de ce serveur sont écrasées : {path}"),
    Message("quarantined", "E", "What this server wrote on its own is kept before it is overwritten: {files} files,"
            " {size}, in {dir} ({left} not kept); see: safekit quarantine show -m {module} {id}",
            "Ce que ce serveur a écrit seul est conservé avant d'être écrasé : {files} fichiers, {size}, dans {dir}"
            " ({left} non conservés) ; voir : safekit quarantine show -m {module} {id}"),
    Message("quarantine_failed", "E", "What this server wrote on its own is overwritten and could not be kept in {dir}:"
            " {reason}", "Ce que ce serveur a écrit seul est écrasé et n'a pu être conservé dans {dir} : {reason}"),
    Message("reintegration_failed", "E", "Reintegration failed: {reason}", "Échec de la réintégration : {reason}"),
    Message("reintegration_detail", "I", "Reintegration of {dir}: {text}", "Réintégration de {dir} : {text}"),
    Message("rfs_state_fault", "E", "{reason}: the next reintegration copies everything",
            "{reason} : la prochaine réintégration copie tout"),
    Message("nfscheck_timeout", "E", "{dir} does not answer within {ms} ms", "{dir} ne répond pas en {ms} ms"),
    Message("nfscheck_error", "E", "{dir} answers with an error: {text}", "{dir} répond par une erreur : {text}"),
    # Virtual IP
    Message("vip_set", "E", "Virtual IP {addr} set", "IP virtuelle {addr} positionnée"),
    Message("vip_unset", "I", "Virtual IP {addr} unset", "IP virtuelle {addr} retirée"),
    Message("vip_duplicate", "E", "Virtual IP {addr} not set: it is in use by {mac} on {interface}; it will be set"
            " as soon as that machine has given it up",
            "IP virtuelle {addr} non positionnée : utilisée par {mac} sur {interface} ; elle le sera dès que cette"
            " machine l'aura libérée"),
    Message("vip_taken_over", "E", "Virtual IP {addr} still answered on {node} ({mac}): taken over",
            "IP virtuelle {addr} encore présente sur {node} ({mac}) : reprise"),
    Message("vip_conflict", "E", "Virtual IP {addr} is claimed by {who} ({mac}) on {interface}",
            "L'IP virtuelle {addr} est revendiquée par {who} ({mac}) sur {interface}"),
    Message("vip_not_set", "E", "Virtual IP {addr} not set: {reason}",
            "IP virtuelle {addr} non positionnée : {reason}"),
    Message("vip_no_reset", "E", "TCP connections of the virtual IP {addr} are not reset: {reason}",
            "Les connexions TCP de l'IP virtuelle {addr} ne sont pas coupées : {reason}"),
    Message("vip_reset", "I", "{count} TCP connections of the virtual IP {addr} reset",
            "{count} connexions TCP de l'IP virtuelle {addr} coupées"),
    Message("vip_adopted", "I", "Virtual IP {addr} kept on {interface} by the restarted vipd",
            "IP virtuelle {addr} conservée sur {interface} par vipd redémarré"),
    Message("vip_leftover", "I", "Virtual IP {addr} removed from {interface}: it was left over",
            "IP virtuelle {addr} retirée de {interface} : elle y était restée"),
    Message("vip_lost", "I", "Virtual IP {addr} is no longer on {interface}",
            "L'IP virtuelle {addr} n'est plus sur {interface}"),
    Message("vip_back", "I", "Virtual IP {addr} is on {interface} again",
            "L'IP virtuelle {addr} est de nouveau sur {interface}"),
    Message("vip_restored", "I", "Address {addr} put back on {interface}: the kernel had removed it with a virtual IP",
            "Adresse {addr} remise sur {interface} : le noyau l'avait retirée avec une IP virtuelle"),
    Message("vip_link", "I", "Interface {interface} of the virtual IP is {state}",
            "L'interface {interface} de l'IP virtuelle est {state}"),
    # Messages of administrators and scripts
    Message("printi", "I", "{text}", "{text}"),
    Message("printe", "E", "{text}", "{text}"),
    Message("debug", "D", "{text}", "{text}"),
    Message("internal", "E", "{text}", "{text}"),
    # Checkers and process death detection
    Message("custom_ended", "I", "Custom checker {ident} ended: {status}; it is started again in {seconds} s",
            "Le checker {ident} s'est terminé : {status} ; redémarrage dans {seconds} s"),
    Message("custom_missing", "E", "Custom checker {ident} cannot be started: {reason}; put it into the bin directory"
            " of the module, make it executable and apply the configuration",
            "Le checker {ident} ne peut pas être démarré : {reason} ; placez-le dans le répertoire bin du module,"
            " rendez-le exécutable et appliquez la configuration"),
    Message("errd_event", "E", "event {criterion} on proc {name}", "événement {criterion} sur le processus {name}"),
    Message("errd_counted", "I", "Process {name}: {count} running, at least {atleast} and at most {atmax} wanted{died}",
            "Processus {name} : {count} en cours, au moins {atleast} et au plus {atmax} attendus{died}"),
    Message("errd_handler", "I", "Handler {handler} of proc {name} ended: {status}",
            "Le traitement {handler} du processus {name} s'est terminé : {status}"),
    # Farm
    Message("farm_membership", "E", "farm membership: {members} (group {group})",
            "membres de la ferme : {members} (groupe {group})"),
    Message("farm_load", "E", "farm load: {bits}/256 (group {group})",
            "charge de la ferme : {bits}/256 (groupe {group})"),
    Message("farm_restarted", "I", "Farm: vipd of {node} was restarted", "Ferme : vipd de {node} a été redémarré"),
    Message("farm_heard", "I", "Farm: {node} is heard", "Ferme : {node} est entendu"),
    Message("farm_left", "I", "Farm: {node} said goodbye", "Ferme : {node} a dit au revoir"),
    Message("farm_silent", "E", "Farm: nothing was heard of {node} for {seconds} s: it is dead, or cut off from this"
            " server",
            "Ferme : rien n'a été entendu de {node} pendant {seconds} s : il est mort, ou coupé de ce serveur"),
    Message("farm_frozen", "E", "Farm: this server stood still for {seconds} s; the others may have taken over, it"
            " takes part again",
            "Ferme : ce serveur a été figé pendant {seconds} s ; les autres ont pu reprendre sa charge, il participe à"
            " nouveau"),
    Message("farm_gave_way", "E", "Farm: {node} is heard but does not hear this server, and serves without it: this"
            " server gives way; check the network from here to {node}",
            "Ferme : {node} est entendu mais n'entend pas ce serveur et sert sans lui : ce serveur s'efface ; vérifier"
            " le réseau d'ici vers {node}"),
    Message("farm_back", "E", "Farm: {node} hears this server again", "Ferme : {node} entend à nouveau ce serveur"),
    Message("farm_impatient", "I", "Farm: {node} has not confirmed its new share in time: its buckets are taken",
            "Ferme : {node} n'a pas confirmé sa nouvelle part à temps : elle est reprise"),
    Message("farm_filter", "E", "Farm: the packet filter was changed by another program ({who}): restored",
            "Ferme : le filtre de paquets a été modifié par un autre programme ({who}) : rétabli"),
    Message("farm_filter_failed", "E", "Farm: the packet filter cannot be set: {reason}",
            "Ferme : le filtre de paquets ne peut pas être mis en place : {reason}"),
    Message("farm_lan", "E", "Farm: lan {lan} is not usable yet: {reason}",
            "Ferme : réseau {lan} inutilisable : {reason}"),
    Message("farm_not_flooded", "E", "Farm: frames for the virtual MAC {mac} from {missing} do not come here on"
            " {interface}, nor to another server: the switch does not flood them; let it flood unknown unicast, or use"
            " vmac_directed",
            "Ferme : les trames pour la MAC virtuelle {mac} venant de {missing} n'arrivent pas ici sur {interface}, ni"
            " à un autre serveur : le commutateur ne les diffuse pas ; autoriser la diffusion des adresses inconnues,"
            " ou utiliser vmac_directed"),
    Message("farm_learned", "E", "Farm: frames for the virtual MAC {mac} from {missing} do not come here on"
            " {interface}, but reach {reached}: the switch has learned the virtual MAC on a port, or filters it on"
            " another; clear its table and remove static entries",
            "Ferme : les trames pour la MAC virtuelle {mac} venant de {missing} n'arrivent pas ici sur {interface},"
            " mais atteignent {reached} : le commutateur a appris la MAC virtuelle sur un port, ou la filtre sur un"
            " autre ; vider sa table et retirer les entrées statiques"),
    Message("farm_flooded", "E", "Farm: frames for the virtual MAC {mac} come here on {interface} again",
            "Ferme : les trames pour la MAC virtuelle {mac} arrivent à nouveau ici sur {interface}"),
    Message("farm_resumed", "I", "Farm: vipd goes on with the packet filters of its life before",
            "Ferme : vipd reprend les filtres de paquets de sa vie précédente"),
    # Our own processes
    Message("process_died", "E", "Process {name} (pid {pid}) died: {status}; {reaction}",
            "Le processus {name} (pid {pid}) est mort : {status} ; {reaction}"),
    Message("late", "I", "Process {name} was late by {ms} ms: the server is overloaded; timeouts of the peer"
            " start again",
            "Le processus {name} a eu {ms} ms de retard : serveur surchargé ; les délais du pair repartent"),
    Message("no_memlock", "I", "Process {name} cannot lock its memory ({reason}): it may be late under memory pressure",
            "Le processus {name} ne peut pas verrouiller sa mémoire ({reason}) : retards possibles"),
    Message("no_realtime", "I", "Process {name} cannot run with real-time priority ({reason})",
            "Le processus {name} ne peut pas avoir une priorité temps réel ({reason})"),
    Message("certificate", "E", "The certificate SAFE/web/conf/{file} ({name}) is good until {date} only: renew it"
            " (SAFE/web/bin/initssl renew, or your PKI); the console and distributed commands need it, the module does"
            " not",
            "Le certificat SAFE/web/conf/{file} ({name}) n'est valable que jusqu'au {date} : le renouveler"
            " (SAFE/web/bin/initssl renew, ou votre PKI) ; la console et les commandes réparties en ont besoin, le"
            " module non"),
    Message("peer_rejected", "E", "Datagrams of {peer} are rejected on {wire}: {reason}",
            "Les datagrammes de {peer} sont rejetés sur {wire} : {reason}"),
)  # fmt: skip

MESSAGES: dict[str, Message] = {}


def register(messages: tuple[Message, ...]) -> None:
    """Add messages. Raises ValueError for a code that is there already."""
    for message in messages:
        if message.code in MESSAGES:
            raise ValueError(f"message code {message.code!r} is used twice")
        MESSAGES[message.code] = message


register(_TABLE)


def render(code: str, fields: Mapping[str, Any], language: Language = "en") -> str:
    """Text of a message. An unknown code (a log of a newer version) or a missing field is shown as it is."""
    message = MESSAGES.get(code)
    if message is None:
        return f"{code} " + " ".join(f"{key}={value}" for key, value in fields.items())
    template = message.fr if language == "fr" else message.en
    try:
        return template.format_map(fields)
    except (KeyError, IndexError, ValueError):
        return f"{template} {dict(fields)}"


# heart
register(
    (
        Message("second_aborted", "E", "Requested second start aborted: the other server is not primary",
                "Démarrage second demandé abandonné : l'autre serveur n'est pas primaire"),
        Message("action_put_off", "E", "Action {action} from failover rule {rule} is not possible: {reason}",
                "L'action {action} de la règle de failover {rule} n'est pas possible : {reason}"),
        Message("swap_abandoned", "E", "Swap abandoned: {reason}", "Permutation abandonnée : {reason}"),
        Message("adopted", "I", "heart was restarted and takes the module over as it is: {state} {color}",
                "heart a été relancé et reprend le module tel quel : {state} {color}"),
        Message("rfs_recovery", "E", "Replication has failed here and the other server waits for it: the module is"
                " stopped and started (try {number} of {tries})", "La réplication a échoué ici et l'autre serveur"
                " l'attend : arrêt puis démarrage du module (essai {number} sur {tries})"),
        Message("rfs_recovery_over", "E", "Replication has failed {tries} times within a day: the module stays"
                " degraded; find the cause in log/nfsbox.log, then stop and start the module", "La réplication a"
                " échoué {tries} fois en un jour : le module reste dégradé ; chercher la cause dans log/nfsbox.log,"
                " puis arrêter et démarrer le module"),
        Message("parts_lost", "E", "heart was restarted and finds that these died: {names}; they are started again",
                "heart a été relancé et constate la mort de : {names} ; ils sont relancés"),
        Message("heart_silent", "E", "heart has been silent for {seconds} s, after which the other server goes on"
                " alone: the application is stopped here by force, then the module is started again",
                "heart est muet depuis {seconds} s, délai après lequel l'autre serveur continue seul : arrêt forcé de"
                " l'application ici, puis démarrage du module"),
        Message("rfs_unusable", "E", "Replicated directories cannot be used ({operation}): {reason}",
                "Les répertoires répliqués sont inutilisables ({operation}) : {reason}"),
        Message("supervisor_died", "E", "supervisord of the module died: the module is stopped and started under a"
                " new one", "supervisord du module est mort : arrêt puis démarrage du module sous un nouveau"),
        Message("vip_failed", "E", "Virtual IP: {operation} failed: {reason}", "IP virtuelle : {operation} a échoué :"
                " {reason}"),
        Message("process_not_started", "E", "Process {name} could not be started: {reason}",
                "Le processus {name} n'a pas pu être démarré : {reason}"),
        Message("arp_refused", "I", "Permanent ARP entry for {addr} not set: {reason}",
                "Entrée ARP permanente pour {addr} non positionnée : {reason}"),
        Message("config_differs", "E", "The configuration of the module differs on {peer}: apply the same one on both"
                " servers", "La configuration du module diffère sur {peer} : appliquer la même sur les deux serveurs"),
        Message("config_conflict", "E", "The configuration of {peer} does not fit this server: {what}; give both the"
                " right one with safekit -E, from the server that has it", "La configuration de {peer} ne convient pas"
                " à ce serveur : {what} ; donner la bonne aux deux avec safekit -E, depuis le serveur qui l'a"),
        Message("cluster_taken", "E", "The module goes on with another cluster configuration (nodes {nodes})",
                "Le module continue avec une autre configuration du cluster (nœuds {nodes})"),
        Message("cluster_unusable", "E", "The module stops, it cannot go on with this cluster configuration: {reason}",
                "Le module s'arrête, il ne peut continuer avec cette configuration du cluster : {reason}"),
        Message("heartbeat_moved", "E", "Heartbeat {ident} goes from {own} to {peer} now",
                "Le heartbeat {ident} va maintenant de {own} à {peer}"),
        Message("heartbeat_held", "E", "Heartbeat {ident} goes on from {own} to {peer}, its new addresses cannot be"
                " used yet: {reason}", "Le heartbeat {ident} continue de {own} à {peer}, ses nouvelles adresses ne sont"
                " pas encore utilisables : {reason}"),
        Message("heartbeat_unused", "E", "Heartbeat {ident} is not used: its lan {lan} is not in cluster.xml",
                "Le heartbeat {ident} n'est pas utilisé : son réseau {lan} n'est pas dans cluster.xml"),
        Message("rebooting", "E", "Reboot of the server after an automatic stopstart",
                "Redémarrage du serveur après un stopstart automatique"),
    )
)  # fmt: skip

# Checkers, process death detection, and the processes that heart follows
register(
    (
        Message("process_again", "I", "Process {name} runs again (pid {pid}) after {seconds} s without it",
                "Le processus {name} tourne de nouveau (pid {pid}) après {seconds} s d'absence"),
        Message("errd_unreachable", "E", "errd does not take up {operation} of class {name}: {reason}; its processes"
                " are not watched", "errd ne prend pas en compte {operation} de la classe {name} : {reason} ; ses"
                " processus ne sont pas surveillés"),
        Message("errd_silent", "E", "systemd does not answer: nothing is known of {names}; see systemctl status",
                "systemd ne répond pas : rien n'est connu de {names} ; voir systemctl status"),
        Message("errd_resumed", "I", "errd was restarted: it watches again {classes}",
                "errd a été relancé : il surveille de nouveau {classes}"),
        Message("killed", "I", "Signal {signal} sent to {count} processes {name} by {who}",
                "Signal {signal} envoyé à {count} processus {name} par {who}"),
    )
)  # fmt: skip
