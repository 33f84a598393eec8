-- pg_dump of PostgreSQL 14 crashes on a partition whose rows an extension has it dump (pg_extension_config_dump): it looks for the parent,
-- which it has not read, as there is nothing else to dump of such a table. It has where privileges are not those of the installation.
-- So the owner gives up a right that nobody has use for, and that is not noted as of the installation.
do $block$
declare
    leaf regclass;
begin
    if current_setting('server_version_num')::int >= 150000 then
        return;
    end if;
    for leaf in
        select c.oid
        from pg_extension e
        join pg_class c on c.oid = any (e.extconfig)
        where e.extname = 'postbox' and c.relispartition
    loop
        execute format('revoke references on %s from %I', leaf, current_user);
        delete from pg_init_privs p where p.classoid = 'pg_class'::regclass and p.objoid = leaf and p.objsubid = 0;
    end loop;
end
$block$;
