/*
 * All that an install of evbus is, a line for each fact, sorted: two installs of one version, one fresh and one updated, have the
 * same lines.  Leaves are no part of it.  Columns have their numbers, as the library knows some of them by number.
 */
SET search_path = pg_catalog;
WITH ext AS (
	SELECT * FROM pg_extension WHERE extname = 'evbus'
), member AS (
	SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS what
	FROM pg_depend d, ext WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = ext.oid AND d.deptype = 'e'
), rel AS (
	SELECT m.what, c.* FROM member m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
), att AS (
	SELECT r.what || ' column ' || a.attnum || ' ' || a.attname AS what, a.*, r.relkind, r.relowner
	FROM (SELECT what, oid, relkind, relowner FROM rel
		  UNION ALL
		  SELECT m.what, t.typrelid, 'c', t.typowner FROM member m JOIN pg_type t ON m.classid = 'pg_type'::regclass AND t.oid = m.objid WHERE t.typtype = 'c') r
		 JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0
), acl(what, acl) AS (
	SELECT what, coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)) FROM rel
	UNION ALL
	SELECT what, attacl FROM att WHERE attacl IS NOT NULL
	UNION ALL
	SELECT m.what, coalesce(p.proacl, acldefault('f', p.proowner)) FROM member m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
	UNION ALL
	SELECT m.what, coalesce(t.typacl, acldefault('T', t.typowner)) FROM member m JOIN pg_type t ON m.classid = 'pg_type'::regclass AND t.oid = m.objid
	UNION ALL
	SELECT 'schema evbus', coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace WHERE nspname = 'evbus'
)
SELECT 'extension: version ' || extversion || ', relocatable ' || extrelocatable || ', schema ' || extnamespace::regnamespace FROM ext
UNION ALL
SELECT what || ': is a member' FROM member
UNION ALL
SELECT what || ': ' || concat(relkind, relpersistence, relreplident) || ' options ' || coalesce((SELECT string_agg(o, ' ' ORDER BY o) FROM unnest(reloptions) o), '-') || ' security ' || relrowsecurity || ' '
	|| coalesce(pg_get_partkeydef(oid), '-') || ' ' || coalesce(pg_get_expr(relpartbound, oid), '-') FROM rel
UNION ALL
SELECT a.what || ': ' || CASE WHEN a.attisdropped THEN 'dropped' ELSE
	format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END || ' ' || a.attstorage::text || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
	|| concat(' ', a.attidentity, a.attgenerated) END
FROM att a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
UNION ALL
SELECT what || ': ' || pg_get_viewdef(oid) FROM rel WHERE relkind = 'v'
UNION ALL
SELECT r.what || ' constraint ' || c.conname || ': ' || pg_get_constraintdef(c.oid) FROM rel r JOIN pg_constraint c ON c.conrelid = r.oid
UNION ALL
SELECT r.what || ' index: ' || pg_get_indexdef(i.indexrelid) FROM rel r JOIN pg_index i ON i.indrelid = r.oid
UNION ALL
SELECT r.what || ' trigger: ' || pg_get_triggerdef(t.oid) || ' ' || t.tgenabled::text FROM rel r JOIN pg_trigger t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal
UNION ALL
SELECT r.what || ' rule: ' || pg_get_ruledef(w.oid) FROM rel r JOIN pg_rewrite w ON w.ev_class = r.oid WHERE r.relkind <> 'v'
UNION ALL
SELECT r.what || ' policy ' || p.polname || ': ' || coalesce(pg_get_expr(p.polqual, p.polrelid), '-') FROM rel r JOIN pg_policy p ON p.polrelid = r.oid
UNION ALL
SELECT r.what || ': ' || (SELECT string_agg(concat_ws(' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle), '') FROM pg_sequence s WHERE s.seqrelid = r.oid) FROM rel r WHERE r.relkind = 'S'
UNION ALL
SELECT m.what || ': ' || pg_get_functiondef(p.oid) || ' ' || p.procost || ' ' || p.prorows || ' ' || p.proleakproof FROM member m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid WHERE p.prokind <> 'a'
UNION ALL
SELECT what || ' may: ' || coalesce((SELECT string_agg(CASE WHEN x.grantee = 0 THEN 'PUBLIC' WHEN x.grantee = x.grantor THEN 'owner' ELSE x.grantee::regrole::text END || ' ' || x.privilege_type || CASE WHEN x.is_grantable THEN '*' ELSE '' END, ', '
	ORDER BY x.grantee::regrole::text, x.privilege_type) FROM aclexplode(acl.acl) x), 'nobody') FROM acl
UNION ALL
SELECT m.what || ' comment: ' || coalesce(obj_description(m.objid, m.classid::regclass::name), '-') FROM member m
UNION ALL
SELECT what || ' comment: ' || coalesce(col_description(attrelid, attnum), '-') FROM att
UNION ALL
SELECT 'extension comment: ' || obj_description(ext.oid, 'pg_extension') FROM ext
UNION ALL
SELECT 'dumped: ' || c.table::regclass || ' ' || coalesce(c.condition, '') FROM ext, unnest(extconfig, extcondition) AS c("table", condition)
ORDER BY 1;
