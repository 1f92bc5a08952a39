"""The failover rules language: text -> rules -> verdict (guide 13.18).

``safekit.rules.parser.parse`` reads it, ``safekit.rules.evaluator.evaluate``
applies it, ``safekit.rules.printer.render`` writes it back.  Nothing here reads
a file or a clock, except ``safekit.rules.source`` which finds the texts.
"""
