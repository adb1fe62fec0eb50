-- What goes on in evbus, on a terminal, every two seconds until Ctrl-C:
--     psql -Xqf evbus-top.sql -d DATABASE
-- Other values: -v interval=5 (seconds), -v width=120 (columns), -v rows=40 (subscriptions shown).
-- For the superuser and members of pg_monitor.
\set ON_ERROR_STOP on
\if :{?interval} \else \set interval 2
\endif
\if :{?width} \else \set width `s=$(stty size 2>/dev/null) && [ "${s#* }" -gt 0 ] && echo "${s#* }" || echo 100`
\endif
\if :{?rows} \else \set rows `s=$(stty size 2>/dev/null) && h=${s% *} && [ "$h" -gt 0 ] && echo $((h > 15 ? h - 14 : 1)) || echo 20`
\endif
\pset pager off
\pset format unaligned
\pset tuples_only on
\pset footer off
-- To the top left corner, and each line with what it leaves of the one before erased: nothing flickers.
SELECT E'\033[H' || pg_catalog.string_agg(t.line || E'\033[K', E'\n' ORDER BY t.i) || E'\033[J'
FROM evbus.top(greatest(80, least(:width, 500)), :rows) WITH ORDINALITY AS t(line, i)
\watch :interval
