-- Every object a user can meet says what it is for.
\ir include/helpers.sql
SELECT plan(11);

CREATE TEMP VIEW member AS
SELECT d.classid, d.objid, d.objsubid, pg_describe_object(d.classid, d.objid, 0) AS object
FROM pg_depend d
WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'evbus') AND d.deptype = 'e';

SELECT is_empty($$SELECT object FROM member JOIN pg_class c ON classid = 'pg_class'::regclass AND c.oid = objid AND relkind IN ('r', 'p')
	WHERE coalesce(obj_description(objid, 'pg_class'), '') = ''$$, 'every table has a comment');
SELECT is_empty($$SELECT object FROM member JOIN pg_class c ON classid = 'pg_class'::regclass AND c.oid = objid AND relkind = 'v'
	WHERE coalesce(obj_description(objid, 'pg_class'), '') = ''$$, 'every view has a comment');
SELECT is_empty($$SELECT object FROM member JOIN pg_proc p ON classid = 'pg_proc'::regclass AND p.oid = objid AND prokind = 'f'
	WHERE coalesce(obj_description(objid, 'pg_proc'), '') = ''$$, 'every function has a comment');
SELECT is_empty($$SELECT object FROM member JOIN pg_proc p ON classid = 'pg_proc'::regclass AND p.oid = objid AND prokind = 'p'
	WHERE coalesce(obj_description(objid, 'pg_proc'), '') = ''$$, 'every procedure has a comment');
-- The row types of tables and views are members from PostgreSQL 17 on; what they are for the tables and views say.
SELECT is_empty($$SELECT object FROM member JOIN pg_type t ON classid = 'pg_type'::regclass AND t.oid = objid AND typcategory <> 'A'
	LEFT JOIN pg_class c ON c.oid = typrelid
	WHERE coalesce(relkind, 'c') = 'c' AND coalesce(obj_description(objid, 'pg_type'), '') = ''$$, 'every type has a comment');
SELECT isnt(obj_description((SELECT oid FROM pg_extension WHERE extname = 'evbus'), 'pg_extension'), NULL, 'the extension has a comment');
SELECT cmp_ok(count(*), '>', 30::bigint, 'the questions above had something to look at') FROM member;
SELECT is_empty($$SELECT object FROM member WHERE object NOT LIKE '%evbus%' AND classid <> 'pg_extension'::regclass$$, 'everything lives in schema evbus');
SELECT is_empty($$SELECT name FROM pg_settings WHERE name LIKE 'evbus.%' AND coalesce(short_desc, '') = ''$$, 'every setting says what it sets');
SELECT cmp_ok(count(*), '>=', 11::bigint, 'and there are settings') FROM pg_settings WHERE name LIKE 'evbus.%';
SELECT is_empty($$SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'evbus'::regnamespace AND proisstrict = false AND proname NOT LIKE '\_%' AND pronargs > 0 AND proargnames IS NULL$$,
	'every argument of the API has a name');

SELECT * FROM finish();
