-- Members are sessions named postbox:<group>:<member>. Nobody writes down that he lives: a session is there or not.

create or replace view postbox.consumer_status as
    with member as (
        select split_part(a.application_name, ':', 2)                        as group_name,
               substr(a.application_name, length(split_part(a.application_name, ':', 2)) + 10) as member,
               a.pid                                                         as pid,
               a.state_change                                                as last_contact,
               a.backend_start                                               as started_at
        from pg_stat_activity a
        where a.application_name like 'postbox:%:%' and a.datname = current_database()
          -- NULL for roles that may not see it.
          and a.backend_type is distinct from 'walsender'
    )
    select g.name                                                            as group_name,
           coalesce(m.member, case when l.pid is not null then g.member end) as member,
           case when l.pid is not null then 'active' when m.pid is not null then 'standby' end as role,
           coalesce(m.pid, l.pid)                                            as pid,
           m.last_contact                                                    as last_contact,
           case when l.pid is null and m.pid is null then g.paused_at is not null
                when l.pid is null then true
                else clock_timestamp() - m.last_contact < coalesce(g.session_timeout, '1 minute') end as healthy,
           case when l.pid is not null then g.epoch end                      as epoch,
           case when l.pid is not null then g.active_since else m.started_at end as since,
           g.paused_at                                                       as paused_at
    from postbox.consumer_group g
    left join (
        -- The holder of a lock need not be named as ours are.
        member m full join postbox._active_member l on l.group_name = m.group_name and l.pid = m.pid
    ) on g.name = coalesce(l.group_name, m.group_name);
comment on view postbox.consumer_status is 'The members of each consumer group; one row without a member for a group that has none';
comment on column postbox.consumer_status.role is 'active: it delivers; standby: it waits to take over';
comment on column postbox.consumer_status.last_contact is 'When its session last asked or was answered; NULL for roles that may not see it (pg_read_all_stats)';
comment on column postbox.consumer_status.healthy is
    'An active member was heard of within its session timeout; without members: the group is paused; NULL: this role may not see it';
comment on column postbox.consumer_status.since is 'Active since, or waiting since';

create or replace view postbox.active_leases as
    select g.name                                        as group_name,
           coalesce(nullif(substr(a.application_name, length(g.name) + 10), ''), g.member) as member,
           g.epoch                                       as epoch,
           l.pid                                         as pid,
           g.active_since                                as since,
           a.state_change                                as last_contact,
           a.state_change + g.session_timeout            as expires_at
    from postbox._active_member l
    join postbox.consumer_group g on g.name = l.group_name
    left join pg_stat_activity a on a.pid = l.pid;
comment on view postbox.active_leases is 'Who holds which group, and until when if it is not heard of again';
