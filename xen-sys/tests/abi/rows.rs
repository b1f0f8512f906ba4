//! The rows of the table in `tests/abi.rs`, one function for each file of `src/abi`.

use crate::table::{Row, Table, alias, layout, values};
use xen_sys::abi;

/// Builds the table.
pub(crate) fn table() -> Table {
    let mut table = Table::default();
    let t = &mut table;
    t.rows.push(Row::Type {
        rust: "GuestHandle",
        c_type: "XEN_GUEST_HANDLE(xen_pfn_t)",
        size: size_of::<abi::GuestHandle<u64>>(),
    });
    arch(t);
    callback(t);
    elfnote(t);
    event_channel(t);
    features(t);
    grant_table(t);
    io_console(t);
    io_xenbus(t);
    io_xs_wire(t);
    memory(t);
    sched(t);
    vcpu(t);
    version(t);
    xen(t);
    xen_shared(t);
    xen_start_info(t);
    table
}

/// arch.rs
fn arch(t: &mut Table) {
    use abi::arch::*;
    values! { t:
        XEN_LEGACY_MAX_VCPUS, FIRST_RESERVED_GDT_PAGE, FIRST_RESERVED_GDT_BYTE, FIRST_RESERVED_GDT_ENTRY,
        FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_DS32, FLAT_RING3_DS64, FLAT_RING3_SS32, FLAT_RING3_SS64,
        FLAT_KERNEL_CS, FLAT_KERNEL_DS, FLAT_KERNEL_SS, FLAT_USER_CS, FLAT_USER_DS, FLAT_USER_SS,
        HYPERVISOR_VIRT_START, HYPERVISOR_VIRT_END, MACH2PHYS_VIRT_START, MACH2PHYS_VIRT_END, MACH2PHYS_NR_ENTRIES,
        SEGBASE_FS, SEGBASE_GS_USER, SEGBASE_GS_KERNEL, SEGBASE_GS_USER_SEL, VGCF_i387_valid, VGCF_in_kernel,
        VGCF_failsafe_disables_events, VGCF_syscall_disables_events, VGCF_online, VGCF_in_syscall
    }
    t.value("xen_pfn_to_cr3()", "xen_pfn_to_cr3(0x12345678)", xen_pfn_to_cr3(0x1234_5678));
    t.value("xen_cr3_to_pfn()", "xen_cr3_to_pfn(0x12345678abc)", xen_cr3_to_pfn(0x0123_4567_8abc));
    layout! { t: TrapInfo = "struct trap_info" { vector, flags, cs, address }}
    layout! { t: CpuUserRegs = "struct cpu_user_regs" {
        r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, error_code, entry_vector, rip, cs,
        _pad0, saved_upcall_mask, _pad1, rflags, rsp, ss, _pad2, es, _pad3, ds, _pad4, fs, _pad5, gs, _pad6
    }}
    layout! { t: VcpuGuestContext = "struct vcpu_guest_context" {
        fpu_ctxt, flags, user_regs, trap_ctxt, ldt_base, ldt_ents, gdt_frames, gdt_ents, kernel_ss, kernel_sp,
        ctrlreg, debugreg, event_callback_eip, failsafe_callback_eip, syscall_callback_eip, vm_assist, fs_base,
        gs_base_kernel, gs_base_user
    }}
    layout! { t: IretContext = "struct iret_context" { rax, r11, rcx, flags, rip, cs, rflags, rsp, ss }}
    layout! { t: ArchSharedInfo = "struct arch_shared_info" {
        max_pfn, pfn_to_mfn_frame_list_list, nmi_reason, p2m_cr3, p2m_vaddr, p2m_generation
    }}
    layout! { t: ArchVcpuInfo = "struct arch_vcpu_info" { cr2, pad }}
}

/// callback.rs
fn callback(t: &mut Table) {
    use abi::callback::*;
    values! { t:
        CALLBACKTYPE_event, CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall, CALLBACKTYPE_nmi, CALLBACKTYPE_sysenter,
        CALLBACKTYPE_syscall32, CALLBACKF_mask_events, CALLBACKOP_register, CALLBACKOP_unregister
    }
    layout! { t: CallbackRegister = "struct callback_register" { r#type, flags, address }}
    layout! { t: CallbackUnregister = "struct callback_unregister" { r#type, _unused }}
}

/// elfnote.rs
fn elfnote(t: &mut Table) {
    use abi::elfnote::*;
    values! { t:
        XEN_ELFNOTE_INFO, XEN_ELFNOTE_ENTRY, XEN_ELFNOTE_HYPERCALL_PAGE, XEN_ELFNOTE_VIRT_BASE,
        XEN_ELFNOTE_PADDR_OFFSET, XEN_ELFNOTE_XEN_VERSION, XEN_ELFNOTE_GUEST_OS, XEN_ELFNOTE_GUEST_VERSION,
        XEN_ELFNOTE_LOADER, XEN_ELFNOTE_PAE_MODE, XEN_ELFNOTE_FEATURES, XEN_ELFNOTE_BSD_SYMTAB,
        XEN_ELFNOTE_HV_START_LOW, XEN_ELFNOTE_L1_MFN_VALID, XEN_ELFNOTE_SUSPEND_CANCEL, XEN_ELFNOTE_INIT_P2M,
        XEN_ELFNOTE_MOD_START_PFN, XEN_ELFNOTE_SUPPORTED_FEATURES, XEN_ELFNOTE_PHYS32_ENTRY, XEN_ELFNOTE_MAX
    }
}

/// event_channel.rs
fn event_channel(t: &mut Table) {
    use abi::event_channel::*;
    alias!(t, evtchn_port_t);
    alias!(t, event_word_t);
    values! { t:
        EVTCHNOP_bind_interdomain, EVTCHNOP_bind_virq, EVTCHNOP_bind_pirq, EVTCHNOP_close, EVTCHNOP_send,
        EVTCHNOP_status, EVTCHNOP_alloc_unbound, EVTCHNOP_bind_ipi, EVTCHNOP_bind_vcpu, EVTCHNOP_unmask,
        EVTCHNOP_reset, EVTCHNOP_init_control, EVTCHNOP_expand_array, EVTCHNOP_set_priority, EVTCHNSTAT_closed,
        EVTCHNSTAT_unbound, EVTCHNSTAT_interdomain, EVTCHNSTAT_pirq, EVTCHNSTAT_virq, EVTCHNSTAT_ipi,
        BIND_PIRQ__WILL_SHARE, EVTCHN_2L_NR_CHANNELS, EVTCHN_FIFO_PRIORITY_MAX, EVTCHN_FIFO_PRIORITY_DEFAULT,
        EVTCHN_FIFO_PRIORITY_MIN, EVTCHN_FIFO_MAX_QUEUES, EVTCHN_FIFO_PENDING, EVTCHN_FIFO_MASKED, EVTCHN_FIFO_LINKED,
        EVTCHN_FIFO_BUSY, EVTCHN_FIFO_LINK_BITS, EVTCHN_FIFO_LINK_MASK, EVTCHN_FIFO_NR_CHANNELS
    }
    layout! { t: EvtchnAllocUnbound = "struct evtchn_alloc_unbound" { dom, remote_dom, port }}
    layout! { t: EvtchnBindInterdomain = "struct evtchn_bind_interdomain" {
        remote_dom, remote_port, local_port
    }}
    layout! { t: EvtchnBindVirq = "struct evtchn_bind_virq" { virq, vcpu, port }}
    layout! { t: EvtchnBindPirq = "struct evtchn_bind_pirq" { pirq, flags, port }}
    layout! { t: EvtchnBindIpi = "struct evtchn_bind_ipi" { vcpu, port }}
    layout! { t: EvtchnClose = "struct evtchn_close" { port }}
    layout! { t: EvtchnSend = "struct evtchn_send" { port }}
    layout! { t: EvtchnStatus = "struct evtchn_status" { dom, port, status, vcpu, u }}
    layout! { t: EvtchnStatusU = "__typeof__(((struct evtchn_status *)0)->u)" {
        unbound, interdomain, pirq, virq
    }}
    layout! { t: EvtchnStatusUnbound = "__typeof__(((struct evtchn_status *)0)->u.unbound)" { dom }}
    layout! { t: EvtchnStatusInterdomain = "__typeof__(((struct evtchn_status *)0)->u.interdomain)" {
        dom, port
    }}
    layout! { t: EvtchnBindVcpu = "struct evtchn_bind_vcpu" { port, vcpu }}
    layout! { t: EvtchnUnmask = "struct evtchn_unmask" { port }}
    layout! { t: EvtchnReset = "struct evtchn_reset" { dom }}
    layout! { t: EvtchnInitControl = "struct evtchn_init_control" {
        control_gfn, offset, vcpu, link_bits, _pad
    }}
    layout! { t: EvtchnExpandArray = "struct evtchn_expand_array" { array_gfn }}
    layout! { t: EvtchnSetPriority = "struct evtchn_set_priority" { port, priority }}
    layout! { t: EvtchnFifoControlBlock = "struct evtchn_fifo_control_block" { ready, _rsvd, head }}
}

/// features.rs
fn features(t: &mut Table) {
    use abi::features::*;
    values! { t:
        XENFEAT_writable_page_tables, XENFEAT_writable_descriptor_tables, XENFEAT_auto_translated_physmap,
        XENFEAT_supervisor_mode_kernel, XENFEAT_pae_pgdir_above_4gb, XENFEAT_mmu_pt_update_preserve_ad,
        XENFEAT_highmem_assist, XENFEAT_gnttab_map_avail_bits, XENFEAT_hvm_callback_vector, XENFEAT_hvm_safe_pvclock,
        XENFEAT_hvm_pirqs, XENFEAT_dom0, XENFEAT_memory_op_vnode_supported, XENFEAT_ARM_SMCCC_supported,
        XENFEAT_linux_rsdp_unrestricted, XENFEAT_not_direct_mapped, XENFEAT_direct_mapped, XENFEAT_NR_SUBMAPS
    }
}

/// grant_table.rs
fn grant_table(t: &mut Table) {
    use abi::grant_table::*;
    alias!(t, grant_ref_t);
    values! { t:
        GNTTABOP_setup_table, GNTTABOP_query_size, GNTTAB_NR_RESERVED_ENTRIES, GNTTAB_RESERVED_CONSOLE,
        GNTTAB_RESERVED_XENSTORE, GTF_invalid, GTF_permit_access, GTF_accept_transfer, GTF_transitive, GTF_type_mask,
        GTF_readonly, GTF_reading, GTF_writing, GNTST_okay, GNTST_general_error, GNTST_bad_domain, GNTST_bad_gntref,
        GNTST_bad_handle, GNTST_bad_virt_addr, GNTST_bad_dev_addr, GNTST_no_device_space, GNTST_permission_denied,
        GNTST_bad_page, GNTST_bad_copy_arg, GNTST_address_too_big, GNTST_eagain, GNTST_no_space
    }
    layout! { t: GrantEntryV1 = "struct grant_entry_v1" { flags, domid, frame }}
    layout! { t: GnttabSetupTable = "struct gnttab_setup_table" { dom, nr_frames, status, frame_list }}
    layout! { t: GnttabQuerySize = "struct gnttab_query_size" { dom, nr_frames, max_nr_frames, status }}
}

/// io/console.rs
fn io_console(t: &mut Table) {
    use abi::io::console::*;
    layout! { t: XenconsInterface = "struct xencons_interface" {
        r#in, out, in_cons, in_prod, out_cons, out_prod
    }}
}

/// io/xenbus.rs
fn io_xenbus(t: &mut Table) {
    use abi::io::xenbus::XenbusState;
    t.value("XenbusState::Unknown", "XenbusStateUnknown", XenbusState::Unknown as u32);
    t.value("XenbusState::Initialising", "XenbusStateInitialising", XenbusState::Initialising as u32);
    t.value("XenbusState::InitWait", "XenbusStateInitWait", XenbusState::InitWait as u32);
    t.value("XenbusState::Initialised", "XenbusStateInitialised", XenbusState::Initialised as u32);
    t.value("XenbusState::Connected", "XenbusStateConnected", XenbusState::Connected as u32);
    t.value("XenbusState::Closing", "XenbusStateClosing", XenbusState::Closing as u32);
    t.value("XenbusState::Closed", "XenbusStateClosed", XenbusState::Closed as u32);
    t.value("XenbusState::Reconfiguring", "XenbusStateReconfiguring", XenbusState::Reconfiguring as u32);
    t.value("XenbusState::Reconfigured", "XenbusStateReconfigured", XenbusState::Reconfigured as u32);
}

/// io/xs_wire.rs
fn io_xs_wire(t: &mut Table) {
    use abi::io::xs_wire::*;
    values! { t:
        XS_CONTROL, XS_DIRECTORY, XS_READ, XS_GET_PERMS, XS_WATCH, XS_UNWATCH, XS_TRANSACTION_START,
        XS_TRANSACTION_END, XS_INTRODUCE, XS_RELEASE, XS_GET_DOMAIN_PATH, XS_WRITE, XS_MKDIR, XS_RM, XS_SET_PERMS,
        XS_WATCH_EVENT, XS_ERROR, XS_IS_DOMAIN_INTRODUCED, XS_RESUME, XS_SET_TARGET, XS_RESET_WATCHES,
        XS_DIRECTORY_PART, XS_TYPE_COUNT, XS_INVALID, XS_WATCH_PATH, XS_WATCH_TOKEN, XENSTORE_RING_SIZE,
        XENSTORE_PAYLOAD_MAX, XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX, XENSTORE_SERVER_FEATURE_RECONNECTION,
        XENSTORE_SERVER_FEATURE_ERROR, XENSTORE_CONNECTED, XENSTORE_RECONNECT, XENSTORE_ERROR_NONE,
        XENSTORE_ERROR_COMM, XENSTORE_ERROR_RINGIDX, XENSTORE_ERROR_PROTO
    }
    layout! { t: XsdSockmsg = "struct xsd_sockmsg" { r#type, req_id, tx_id, len }}
    layout! { t: XenstoreDomainInterface = "struct xenstore_domain_interface" {
        req, rsp, req_cons, req_prod, rsp_cons, rsp_prod, server_features, connection, error
    }}
}

/// memory.rs
fn memory(t: &mut Table) {
    use abi::memory::*;
    values! { t:
        XENMEM_increase_reservation, XENMEM_decrease_reservation, XENMEM_maximum_ram_page, XENMEM_current_reservation,
        XENMEM_maximum_reservation, XENMEM_machphys_mfn_list, XENMEM_populate_physmap, XENMEM_add_to_physmap,
        XENMEM_memory_map, XENMEM_machine_memory_map, XENMEM_exchange, XENMEM_machphys_mapping, XENMEM_maximum_gpfn,
        XENMAPSPACE_shared_info, XENMAPSPACE_grant_table, XENMAPSPACE_gmfn
    }
    layout! { t: XenMemoryReservation = "struct xen_memory_reservation" {
        extent_start, nr_extents, extent_order, mem_flags, domid
    }}
    layout! { t: XenMemoryExchange = "struct xen_memory_exchange" { r#in, out, nr_exchanged }}
    layout! { t: XenMemoryDomain = "struct xen_memory_domain" { domid }}
    layout! { t: XenMachphysMapping = "struct xen_machphys_mapping" { v_start, v_end, max_mfn }}
    layout! { t: XenAddToPhysmap = "struct xen_add_to_physmap" { domid, size, space, idx, gpfn }}
    layout! { t: XenMemoryMap = "struct xen_memory_map" { nr_entries, buffer }}
}

/// sched.rs
fn sched(t: &mut Table) {
    use abi::sched::*;
    values! { t:
        SCHEDOP_yield, SCHEDOP_block, SCHEDOP_shutdown, SCHEDOP_poll, SCHEDOP_shutdown_code, SCHEDOP_watchdog,
        SHUTDOWN_poweroff, SHUTDOWN_reboot, SHUTDOWN_suspend, SHUTDOWN_crash, SHUTDOWN_watchdog, SHUTDOWN_soft_reset,
        SHUTDOWN_MAX
    }
    layout! { t: SchedShutdown = "struct sched_shutdown" { reason }}
    layout! { t: SchedPoll = "struct sched_poll" { ports, nr_ports, timeout }}
    layout! { t: SchedWatchdog = "struct sched_watchdog" { id, timeout }}
}

/// vcpu.rs
fn vcpu(t: &mut Table) {
    use abi::vcpu::*;
    values! { t:
        VCPUOP_initialise, VCPUOP_up, VCPUOP_down, VCPUOP_is_up, VCPUOP_get_runstate_info,
        VCPUOP_register_runstate_memory_area, VCPUOP_set_periodic_timer, VCPUOP_stop_periodic_timer,
        VCPUOP_set_singleshot_timer, VCPUOP_stop_singleshot_timer, VCPUOP_register_vcpu_info, VCPUOP_send_nmi,
        VCPUOP_register_vcpu_time_memory_area, RUNSTATE_running, RUNSTATE_runnable, RUNSTATE_blocked,
        RUNSTATE_offline, XEN_RUNSTATE_UPDATE, VCPU_SSHOTTMR_future
    }
    layout! { t: VcpuRunstateInfo = "struct vcpu_runstate_info" { state, state_entry_time, time }}
    layout! { t: VcpuRunstate = "struct vcpu_runstate_info" { state, state_entry_time, time }}
    layout! { t: VcpuRegisterRunstateMemoryArea = "struct vcpu_register_runstate_memory_area" { addr }}
    layout! { t: VcpuSetPeriodicTimer = "struct vcpu_set_periodic_timer" { period_ns }}
    layout! { t: VcpuSetSingleshotTimer = "struct vcpu_set_singleshot_timer" { timeout_abs_ns, flags }}
    layout! { t: VcpuRegisterVcpuInfo = "struct vcpu_register_vcpu_info" { mfn, offset, rsvd }}
    layout! { t: VcpuRegisterTimeMemoryArea = "struct vcpu_register_time_memory_area" { addr }}
}

/// version.rs
fn version(t: &mut Table) {
    use abi::version::*;
    values! { t:
        XENVER_version, XENVER_extraversion, XENVER_compile_info, XENVER_capabilities, XENVER_changeset,
        XENVER_platform_parameters, XENVER_get_features, XENVER_pagesize, XENVER_guest_handle, XENVER_commandline,
        XEN_EXTRAVERSION_LEN
    }
    layout! { t: XenCompileInfo = "struct xen_compile_info" {
        compiler, compile_by, compile_domain, compile_date
    }}
    layout! { t: XenPlatformParameters = "struct xen_platform_parameters" { virt_start }}
    layout! { t: XenFeatureInfo = "struct xen_feature_info" { submap_idx, submap }}
}

/// xen.rs
fn xen(t: &mut Table) {
    use abi::xen::*;
    alias!(t, domid_t);
    alias!(t, xen_pfn_t);
    values! { t:
        __HYPERVISOR_set_trap_table, __HYPERVISOR_mmu_update, __HYPERVISOR_set_gdt, __HYPERVISOR_stack_switch,
        __HYPERVISOR_set_callbacks, __HYPERVISOR_fpu_taskswitch, __HYPERVISOR_set_debugreg, __HYPERVISOR_get_debugreg,
        __HYPERVISOR_update_descriptor, __HYPERVISOR_memory_op, __HYPERVISOR_multicall,
        __HYPERVISOR_update_va_mapping, __HYPERVISOR_set_timer_op, __HYPERVISOR_xen_version, __HYPERVISOR_console_io,
        __HYPERVISOR_grant_table_op, __HYPERVISOR_vm_assist, __HYPERVISOR_iret, __HYPERVISOR_vcpu_op,
        __HYPERVISOR_set_segment_base, __HYPERVISOR_mmuext_op, __HYPERVISOR_nmi_op, __HYPERVISOR_sched_op,
        __HYPERVISOR_callback_op, __HYPERVISOR_event_channel_op, VIRQ_TIMER, VIRQ_DEBUG, VIRQ_CONSOLE, VIRQ_DOM_EXC,
        VIRQ_TBUF, VIRQ_DEBUGGER, VIRQ_XENOPROF, VIRQ_CON_RING, VIRQ_PCPU_STATE, VIRQ_MEM_EVENT, VIRQ_ARGO,
        VIRQ_ENOMEM, VIRQ_XENPMU, VIRQ_ARCH_0, NR_VIRQS, MMU_NORMAL_PT_UPDATE, MMU_MACHPHYS_UPDATE,
        MMU_PT_UPDATE_PRESERVE_AD, MMU_PT_UPDATE_NO_TRANSLATE, MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE,
        MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE, MMUEXT_NEW_BASEPTR, MMUEXT_TLB_FLUSH_LOCAL,
        MMUEXT_INVLPG_LOCAL, MMUEXT_TLB_FLUSH_MULTI, MMUEXT_INVLPG_MULTI, MMUEXT_TLB_FLUSH_ALL, MMUEXT_INVLPG_ALL,
        MMUEXT_FLUSH_CACHE, MMUEXT_SET_LDT, MMUEXT_NEW_USER_BASEPTR, MMUEXT_CLEAR_PAGE, MMUEXT_COPY_PAGE, UVMF_NONE,
        UVMF_TLB_FLUSH, UVMF_INVLPG, UVMF_FLUSHTYPE_MASK, UVMF_MULTI, UVMF_LOCAL, UVMF_ALL, CONSOLEIO_write,
        CONSOLEIO_read, VMASST_CMD_enable, VMASST_CMD_disable, VMASST_TYPE_writable_pagetables,
        VMASST_TYPE_architectural_iopl, VMASST_TYPE_runstate_update_flag, VMASST_TYPE_m2p_strict,
        DOMID_FIRST_RESERVED, DOMID_SELF, DOMID_IO, DOMID_XEN, DOMID_COW, DOMID_INVALID, DOMID_IDLE
    }
    layout! { t: MmuUpdate = "struct mmu_update" { ptr, val }}
    layout! { t: MmuextOp = "struct mmuext_op" { cmd, arg1, arg2 }}
    layout! { t: MmuextOpArg1 = "__typeof__(((struct mmuext_op *)0)->arg1)" { mfn, linear_addr }}
    layout! { t: MmuextOpArg2 = "__typeof__(((struct mmuext_op *)0)->arg2)" { nr_ents, vcpumask, src_mfn }}
    layout! { t: MulticallEntry = "struct multicall_entry" { op, result, args }}
}

/// xen/shared.rs
fn xen_shared(t: &mut Table) {
    use abi::xen::*;
    values! { t:
        XEN_PVCLOCK_TSC_STABLE_BIT, XEN_PVCLOCK_GUEST_STOPPED
    }
    layout! { t: VcpuTimeInfo = "struct vcpu_time_info" {
        version, pad0, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags, pad1
    }}
    layout! { t: VcpuInfo = "struct vcpu_info" {
        evtchn_upcall_pending, evtchn_upcall_mask, evtchn_pending_sel, arch, time
    }}
    layout! { t: SharedInfo = "struct shared_info" {
        vcpu_info, evtchn_pending, evtchn_mask, wc_version, wc_sec, wc_nsec, wc_sec_hi, arch
    }}
}

/// xen/start_info.rs
fn xen_start_info(t: &mut Table) {
    use abi::xen::*;
    values! { t:
        MAX_GUEST_CMDLINE, SIF_PRIVILEGED, SIF_INITDOMAIN, SIF_MULTIBOOT_MOD, SIF_MOD_START_PFN, SIF_VIRT_P2M_4TOOLS,
        SIF_PM_MASK
    }
    layout! { t: StartInfo = "struct start_info" {
        magic, nr_pages, shared_info, flags, store_mfn, store_evtchn, console, pt_base, nr_pt_frames, mfn_list,
        mod_start, mod_len, cmd_line, first_p2m_pfn, nr_p2m_frames
    }}
    layout! { t: StartInfoConsole = "__typeof__(((struct start_info *)0)->console)" { domU, dom0 }}
    layout! { t: StartInfoConsoleDomU = "__typeof__(((struct start_info *)0)->console.domU)" { mfn, evtchn }}
    layout! { t: StartInfoConsoleDom0 = "__typeof__(((struct start_info *)0)->console.dom0)" {
        info_off, info_size
    }}
}
