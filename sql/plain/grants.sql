-- What publish and emit call, they call as the caller. These give nothing by themselves: the INSERT is the caller's own.

grant execute on function
    postbox._publish_target(regclass, text),
    postbox._publish_column(regclass, text, text[], text),
    postbox._fitting_column(regclass, text, text[], text, regtype, boolean),
    postbox._publish(regclass, text, text, text, regtype, text, bytea, text, jsonb, uuid),
    postbox._emit(regclass, text, text, text, regtype, text, bytea, text, jsonb, uuid)
to public;

-- There is no other source here.
select postbox.enable_pgoutput();
