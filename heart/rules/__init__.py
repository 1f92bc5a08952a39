"""The failover rules language: text -> rules -> verdict (guide 13.18).

``heart.rules.parser.parse`` reads it, ``heart.rules.evaluator.evaluate``
applies it, ``heart.rules.printer.render`` writes it back.  Nothing here reads
a file or a clock, except ``heart.rules.source`` which finds the texts.
"""
